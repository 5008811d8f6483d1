-- Attempts whose lease is over, $1 at most. A lease that ends later than it can was given before the clock
-- was set back, and is cut: its worker is heard of within the time of a lease, or never again.
WITH cut AS (
    UPDATE jobs SET lease_until = clock_timestamp() + lease
    WHERE id = ANY (ARRAY(
        SELECT id FROM jobs
        WHERE state = 'running' AND lease_until > clock_timestamp() + lease
        FOR UPDATE SKIP LOCKED
    ))
)
SELECT id, token AS "token!" FROM jobs
WHERE state = 'running' AND lease_until <= clock_timestamp()
ORDER BY lease_until
LIMIT $1
