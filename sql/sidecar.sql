LEFT JOIN (
    SELECT $numbers[file_index::BIGINT + 1] << 40 | row AS place, id, $column
    FROM read_parquet($files, hive_partitioning = false)
) AS $alias ON $alias.place = i.place AND $alias.id = i.id
