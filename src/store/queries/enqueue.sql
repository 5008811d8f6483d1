-- Takes the jobs $1 in that come at once, each if there is room for it (`most` that wait at most, or it is
-- claimed at once with its `token`), and nobody has come with its idempotency key before. $3 and $4 are the
-- files of those with the ids $2.
WITH come AS MATERIALIZED (
    SELECT * FROM ROWS FROM (json_to_recordset($1::text::json) AS (
        most bigint, token uuid, id text, priority smallint, owner text, job_type text,
        idempotency_key text, fingerprint bytea, correlation_id text, client_address text,
        parent_id text, relationship text, max_attempts smallint, worker text, lease_ms bigint,
        code text, input text, code_sha256 bytea, input_sha256 bytea, requirements text[],
        image text, environment json, memory_bytes bigint, millicpus integer, timeout_ms bigint,
        startup_timeout_ms bigint, network boolean, repeatable boolean
    )) WITH ORDINALITY
), owners AS (
    SELECT owner, GREATEST(
        (SELECT last_value FROM turns),
        (SELECT max(turn) + 1 FROM jobs WHERE jobs.owner = come.owner AND state = 'queued')
    ) AS turn
    FROM (SELECT DISTINCT owner FROM come) come
), placed AS (
    SELECT come.*,
        turn - 1 + row_number() OVER (PARTITION BY owner, token IS NULL ORDER BY ordinality) AS turn,
        row_number() OVER (PARTITION BY token IS NULL ORDER BY ordinality) AS place
    FROM come JOIN owners USING (owner)
), waiting AS (
    SELECT count(*) AS jobs FROM (
        SELECT FROM jobs WHERE state = 'queued'
        LIMIT (SELECT COALESCE(max(most), 0) FROM come WHERE token IS NULL)
    ) jobs
), job AS (
    INSERT INTO jobs (
        id, state, priority, owner, turn, job_type, idempotency_key, fingerprint,
        correlation_id, client_address, parent_id, relationship, attempts, max_attempts,
        token, worker, claimed_at, lease, lease_until, started_at, ready_at
    )
    SELECT id, CASE WHEN token IS NULL THEN 'queued' ELSE 'running' END, priority, owner, turn,
        job_type, idempotency_key, fingerprint, correlation_id, client_address, parent_id,
        relationship, CASE WHEN token IS NULL THEN 0 ELSE 1 END, max_attempts, token, worker,
        CASE WHEN token IS NOT NULL THEN clock_timestamp() END,
        lease_ms * interval '1 ms', clock_timestamp() + lease_ms * interval '1 ms',
        CASE WHEN token IS NOT NULL THEN clock_timestamp() END,
        -- Whatever becomes of the clock.
        '-infinity'
    FROM placed, waiting
    WHERE token IS NOT NULL OR most IS NULL OR waiting.jobs + place <= most
    -- Who comes with a key waits for whoever comes with the same: all in the same order.
    ORDER BY owner, idempotency_key, ordinality
    ON CONFLICT (owner, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING
    RETURNING id
), payload AS (
    INSERT INTO payloads (
        job_id, code, input, code_sha256, input_sha256, requirements, image, environment,
        memory_bytes, millicpus, timeout_ms, startup_timeout_ms, network, repeatable
    )
    SELECT id, code, input, code_sha256, input_sha256, requirements, image, environment,
        memory_bytes, millicpus, timeout_ms, startup_timeout_ms, network, repeatable
    FROM job JOIN come USING (id)
), files AS (
    INSERT INTO input_files (job_id, position, name, bytes)
    SELECT id, row_number() OVER (PARTITION BY id ORDER BY ordinality), name, bytes
    FROM job JOIN unnest($2::text[], $3::text[], $4::bytea[])
        WITH ORDINALITY AS file (id, name, bytes, ordinality) USING (id)
)
SELECT id FROM job
