-- The admitted documents: columns of the shards, of the index, and one struct per sidecar; what is not named is not read.
CREATE VIEW documents AS
SELECT $columns
FROM places AS i
$joins
WHERE i.status = 'ok';

-- The exact discrete quantile of x over all documents, whatever the query around it filters.
CREATE MACRO quantile(x, q) AS (
    SELECT quantile_disc(x, q) FILTER (WHERE NOT isnan(CAST(x AS DOUBLE))) FROM documents
);
