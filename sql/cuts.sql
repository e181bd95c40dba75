(
    -- {group: {value, draw}}: the last document of the shortest beginning of each group that is enough
    SELECT map_from_entries(list({key: _group, cut: _cut}))
    FROM (
        SELECT _group, max({value: _value, draw: _draw}) AS _cut
        FROM (
            SELECT
                *, sum(_weight) OVER (PARTITION BY _group) AS _total,
                sum(_weight) OVER (PARTITION BY _group ORDER BY _value, _draw ROWS UNBOUNDED PRECEDING) - _weight
                    AS _before
            FROM (
                SELECT
                    $value AS _value, draw AS _draw, $group AS _group,
                    CASE
                        WHEN CAST(weight AS DOUBLE) < 0 THEN error('a weight is negative; weights are numbers >= 0')
                        WHEN isnan(CAST(weight AS DOUBLE)) THEN NULL
                        ELSE CAST(floor(CAST(weight AS DOUBLE) * 65536 + 0.5) AS HUGEINT)
                    END AS _weight
                FROM documents
            )
            WHERE NOT isnan(_value) AND _weight IS NOT NULL
        )
        WHERE $short
        GROUP BY _group
    )
)
