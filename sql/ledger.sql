-- One row per step and split; in = out + sum of dropped + quarantined.
CREATE VIEW ledger AS
SELECT * FROM read_parquet($files, hive_partitioning = false);
