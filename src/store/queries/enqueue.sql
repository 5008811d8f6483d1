-- Takes a job in, if there is room for it ($1 that wait at most, or it is claimed at once with the token
-- $2), and nobody has come with its idempotency key before.
WITH room AS (
    SELECT $1::bigint IS NULL OR $2::uuid IS NOT NULL OR (
        SELECT count(*) FROM (SELECT FROM jobs WHERE state = 'queued' LIMIT $1) waiting
    ) < $1 AS is_free
), job AS (
    INSERT INTO jobs (
        id, state, priority, owner, turn, job_type, idempotency_key, fingerprint,
        correlation_id, client_address, parent_id, relationship, attempts, max_attempts,
        token, worker, claimed_at, lease_until, started_at
    )
    SELECT $3, CASE WHEN $2::uuid IS NULL THEN 'queued' ELSE 'running' END, $4, $5,
        GREATEST(
            (SELECT last_value FROM turns),
            (SELECT max(turn) + 1 FROM jobs WHERE owner = $5 AND state = 'queued')
        ),
        $6, $7, $8, $9, $10, $11, $12,
        CASE WHEN $2::uuid IS NULL THEN 0 ELSE 1 END, $13, $2, $14::text,
        CASE WHEN $2::uuid IS NOT NULL THEN clock_timestamp() END,
        clock_timestamp() + $15::interval,
        CASE WHEN $2::uuid IS NOT NULL THEN clock_timestamp() END
    FROM room WHERE is_free
    ON CONFLICT (owner, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING
    RETURNING id
), payload AS (
    INSERT INTO payloads (
        job_id, code, input, code_sha256, input_sha256, requirements, image, environment,
        memory_bytes, millicpus, timeout_ms, startup_timeout_ms, network, repeatable
    )
    SELECT id, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $26, $27, $28 FROM job
), files AS (
    INSERT INTO input_files (job_id, position, name, bytes)
    SELECT job.id, file.position, file.name, file.bytes
    FROM job, unnest($29::text[], $30::bytea[]) WITH ORDINALITY AS file (name, bytes, position)
)
SELECT id FROM job
