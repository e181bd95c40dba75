SELECT $mixture AS mixture, * FROM read_parquet($files, hive_partitioning = false, union_by_name = $union)
