-- Takes one job in that begins at once, and has neither an idempotency key nor files: what enqueue.sql does with
-- such a one, without what only others need.
WITH job AS (
    INSERT INTO jobs (
        id, state, priority, owner, turn, job_type, correlation_id, client_address, parent_id,
        relationship, attempts, max_attempts, token, worker, claimed_at, lease, lease_until,
        started_at, ready_at
    )
    VALUES (
        $1, 'running', $2, $3, (SELECT last_value FROM turns), $4, $5, $6, $7,
        $8, 1, $9, $10, $11, clock_timestamp(), $12::bigint * interval '1 ms',
        clock_timestamp() + $12::bigint * interval '1 ms', clock_timestamp(), '-infinity'
    )
)
INSERT INTO payloads (
    job_id, code, input, code_sha256, input_sha256, requirements, image, environment,
    memory_bytes, millicpus, timeout_ms, startup_timeout_ms, network, repeatable
)
VALUES (
    $1, $13, $14, $15::text::bytea, $16::text::bytea, $17, $18, $19::text::json,
    $20, $21, $22, $23, $24, $25
)
