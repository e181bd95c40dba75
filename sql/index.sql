-- Every row of every split that was read, also those not admitted. `place` numbers a row within the run.
CREATE VIEW places AS
SELECT
    s.source, s.shard, i.row, i.id, i.status, nullif(i.repaired, '') AS repaired, i.bytes, i.characters,
    s.number << 40 | i.row AS place
FROM (
    SELECT $numbers[file_index::BIGINT + 1] AS number, *
    FROM read_parquet($files, hive_partitioning = false)
) AS i
JOIN shards AS s USING (number);

CREATE VIEW index AS SELECT * EXCLUDE (place) FROM places;
