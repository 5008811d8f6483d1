-- Begins an attempt of as many jobs at most as there are tokens $1, for the worker $2, with a lease of $3.
-- Nothing waits for longer than $4: what seems to has been told to before the clock was set back.
WITH next AS (
    SELECT id FROM jobs
    WHERE state = 'queued'
        AND (ready_at <= clock_timestamp() OR ready_at > clock_timestamp() + $4::interval)
    ORDER BY priority DESC, turn, number
    LIMIT cardinality($1::uuid[])
    FOR UPDATE SKIP LOCKED
), claimed AS (
    UPDATE jobs SET
        state = 'running', attempts = attempts + 1,
        token = ($1::uuid[])[array_position(ARRAY(SELECT id FROM next), id)], worker = $2,
        claimed_at = clock_timestamp(), lease = $3, lease_until = clock_timestamp() + $3,
        started_at = COALESCE(started_at, clock_timestamp())
    WHERE id = ANY (ARRAY(SELECT id FROM next))
    RETURNING id, token, attempts, turn
)
SELECT
    claimed.id, claimed.token AS "token!", claimed.attempts, payloads.image, payloads.code,
    payloads.input, payloads.environment AS "environment!: serde_json::Value",
    payloads.memory_bytes, payloads.millicpus, payloads.timeout_ms,
    payloads.startup_timeout_ms,
    files.names AS "names: Vec<String>", files.bytes AS "bytes: Vec<Vec<u8>>",
    -- The time in which owners take turns goes on.
    (
        SELECT setval('turns', max(turn)) FROM claimed
        HAVING max(turn) > (SELECT last_value FROM turns)
    ) AS turn
FROM claimed
JOIN payloads ON payloads.job_id = claimed.id
LEFT JOIN LATERAL (
    SELECT array_agg(name ORDER BY position) AS names, array_agg(bytes ORDER BY position) AS bytes
    FROM input_files WHERE job_id = claimed.id
) files ON true
