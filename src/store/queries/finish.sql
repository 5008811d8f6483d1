-- Records how the attempts $1 have ended, each unless it is not the one that runs; $2 and $3 are the beginnings
-- of what they wrote. Gives the places of those that were recorded, and
-- from when to when their jobs ran.
WITH ended AS (
    SELECT * FROM ROWS FROM (json_to_recordset($1::text::json) AS (
        id text, token uuid, state text, execution_id text, runtime text, image text, start text,
        exit_code smallint, stdout_bytes bigint, stderr_bytes bigint, result text,
        result_error text, error_type text, error_message text, error_phase text,
        phase_at_exit text, started_at timestamptz, ended_at timestamptz, sandbox_ms bigint,
        startup_ms bigint, execution_ms bigint, total_ms bigint, max_rss_mb double precision,
        cpu_time_ms bigint, wall_time_ms bigint, oom_kills bigint, artifacts_truncated boolean,
        artifacts_skipped json, files json
    )) WITH ORDINALITY AS ended
    -- All lock in the same order.
    ORDER BY id
), held AS (
    SELECT ended.* FROM ended CROSS JOIN LATERAL (
        SELECT FROM jobs
        WHERE id = ended.id AND token = ended.token AND state = 'running'
        FOR UPDATE
    ) job
), job AS (
    UPDATE jobs SET state = held.state, ended_at = clock_timestamp()
    FROM held WHERE jobs.id = held.id
    RETURNING owner, attempts, worker, claimed_at, jobs.started_at AS begun_at,
        jobs.ended_at AS over_at, held.*
), attempt AS (
    INSERT INTO attempts (job_id, attempt, token, worker, claimed_at, ending)
    SELECT id, attempts, token, worker, claimed_at, 'finished' FROM job
), record AS (
    INSERT INTO records (
        job_id, token, execution_id, runtime, image, start, exit_code, stdout, stdout_bytes,
        stderr, stderr_bytes, result, result_error, error_type, error_message, error_phase,
        phase_at_exit, started_at, ended_at, sandbox_ms, startup_ms, execution_ms, total_ms,
        max_rss_mb, cpu_time_ms, wall_time_ms, oom_kills, artifacts_truncated,
        artifacts_skipped
    )
    SELECT id, token, execution_id, runtime, image, start, exit_code,
        ($2::bytea[])[ordinality], stdout_bytes, ($3::bytea[])[ordinality], stderr_bytes,
        result, result_error, error_type, error_message, error_phase, phase_at_exit, started_at,
        ended_at, sandbox_ms, startup_ms, execution_ms, total_ms, max_rss_mb, cpu_time_ms,
        wall_time_ms, oom_kills, artifacts_truncated, artifacts_skipped
    FROM job
), files AS (
    INSERT INTO artifacts (job_id, position, name, size_bytes, sha256, owner)
    SELECT job.id, file.ordinality, name, size_bytes, decode(sha256, 'hex'), owner
    FROM job CROSS JOIN LATERAL ROWS FROM (
        json_to_recordset(job.files) AS (name text, size_bytes bigint, sha256 text)
    ) WITH ORDINALITY AS file
)
SELECT ordinality AS "place!",
    (extract(epoch FROM begun_at) * 1000000)::bigint AS started_at,
    (extract(epoch FROM over_at) * 1000000)::bigint AS ended_at
FROM job
