JOIN (
    SELECT $numbers[file_index::BIGINT + 1] << 40 | file_row_number AS place, *
    FROM read_parquet($files, hive_partitioning = false, union_by_name = $union)
) AS raw ON raw.place = i.place
