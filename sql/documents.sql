-- The admitted documents: columns of the shards, of the index, and one struct per sidecar; what is not named is not read.
CREATE VIEW documents AS
SELECT $columns
FROM places AS i
$joins
WHERE i.status = 'ok';
