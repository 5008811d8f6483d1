-- Extends the leases by $3 that still hold, of the attempts with the ids $1 and the tokens $2, and tells of
-- all of them that were not taken away.
WITH holds AS (
    SELECT job.id
    FROM (SELECT * FROM unnest($1::text[], $2::uuid[]) AS held (id, token) ORDER BY id) held
    -- All lock in the same order.
    CROSS JOIN LATERAL (
        SELECT id FROM jobs
        WHERE jobs.id = held.id AND jobs.token = held.token AND jobs.state = 'running'
            AND jobs.lease_until > clock_timestamp()
        FOR UPDATE
    ) job
), beat AS (
    UPDATE jobs SET lease_until = clock_timestamp() + $3
    FROM holds WHERE jobs.id = holds.id
    RETURNING jobs.id
)
SELECT jobs.id, jobs.token AS "token!", jobs.cancel_asked_at IS NOT NULL AS "cancel_asked!",
    beat.id IS NOT NULL AS "holds!"
FROM unnest($1::text[], $2::uuid[]) AS held (id, token)
JOIN jobs ON jobs.id = held.id AND jobs.token = held.token AND jobs.state = 'running'
LEFT JOIN beat ON beat.id = jobs.id
