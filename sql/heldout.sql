SELECT $mixture AS mixture, $seed AS seed, step, tokens, unnest(map_keys(nats_per_token)) AS source,
    unnest(map_values(nats_per_token)) AS nats_per_token
FROM read_json(
    $file, format = 'newline_delimited', ignore_errors = true,
    columns = {step: 'BIGINT', tokens: 'BIGINT', nats_per_token: 'MAP(VARCHAR, DOUBLE)'}
)
WHERE step IS NOT NULL -- the last line may still be being written
