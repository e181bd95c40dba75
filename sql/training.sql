SELECT $mixture AS mixture, $seed AS seed, *
FROM read_json(
    $file, format = 'newline_delimited', ignore_errors = true,
    columns = {
        step: 'BIGINT', tokens: 'BIGINT', loss: 'DOUBLE', lr: 'DOUBLE', grad_norm: 'DOUBLE', tokens_s: 'DOUBLE',
        data_wait: 'DOUBLE', flop_s: 'DOUBLE', objective: 'DOUBLE', targets: 'BIGINT'
    }
)
WHERE step IS NOT NULL -- the last line may still be being written
