-- The operators of `select` (sql/operators.py), over all documents whatever the query around them filters.
CREATE MACRO quantile(value, share, weight := 1, "by" := NULL) AS (
    $quantile_cuts[$group].value
);
CREATE MACRO top_k(value, k := NULL, weight := 1, "by" := NULL, share := NULL) AS (
    coalesce(
        {value: $top, draw: draw} <= $top_cuts[$group] AND NOT isnan($top) AND NOT isnan(CAST(weight AS DOUBLE)), false
    )
);
CREATE MACRO gumbel_top_k(value, k := NULL, temperature := NULL, weight := 1, "by" := NULL, share := NULL) AS (
    coalesce(
        {value: $noisy, draw: draw} <= $noisy_cuts[$group] AND NOT isnan($noisy) AND NOT isnan(CAST(weight AS DOUBLE)),
        false
    )
);
