-- Records how the attempt $2 of the job $1 has ended that has left no files, unless it is not the one that runs:
-- what finish.sql does with many. Gives from when to when the job ran.
WITH job AS (
    UPDATE jobs SET state = $3, ended_at = clock_timestamp()
    WHERE id = $1 AND token = $2 AND state = 'running'
    RETURNING id, token, attempts, worker, claimed_at, started_at, ended_at
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
    SELECT id, token, $4, $5, $6, $7, $8::smallint, $9, $10::bigint, $11, $12::bigint, $13, $14, $15,
        $16, $17, $18, $19::text::timestamptz, $20::text::timestamptz, $21::bigint, $22::bigint,
        $23::bigint, $24::bigint, $25::double precision, $26::bigint, $27::bigint, $28::bigint,
        $29::boolean, $30::text::json
    FROM job
)
SELECT
    (extract(epoch FROM started_at) * 1000000)::bigint AS started_at,
    (extract(epoch FROM ended_at) * 1000000)::bigint AS ended_at
FROM job
