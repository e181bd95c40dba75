SELECT $mixture AS mixture, $seed AS seed, * FROM read_parquet($file, hive_partitioning = false)
