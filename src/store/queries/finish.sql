-- Records how the attempt $2 of the job $1 has ended, unless it is not the one that runs.
WITH job AS (
    UPDATE jobs SET state = $3, ended_at = clock_timestamp()
    WHERE id = $1 AND token = $2 AND state = 'running'
    RETURNING id, attempts, worker, claimed_at
), attempt AS (
    INSERT INTO attempts (job_id, attempt, token, worker, claimed_at, ending)
    SELECT id, attempts, $2, worker, claimed_at, 'finished' FROM job
), record AS (
    INSERT INTO records (
        job_id, token, execution_id, runtime, image, start, exit_code, stdout, stdout_bytes,
        stderr, stderr_bytes, result, result_error, error_type, error_message, error_phase,
        phase_at_exit, started_at, ended_at, sandbox_ms, startup_ms, execution_ms, total_ms,
        max_rss_mb, cpu_time_ms, wall_time_ms, oom_kills, artifacts_truncated,
        artifacts_skipped
    )
    SELECT id, $2, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18,
        to_timestamp($19::double precision / 1e6), to_timestamp($20::double precision / 1e6),
        $21, $22, $23, $24, $25, $26, $27, $28, $29, $30
    FROM job
), files AS (
    INSERT INTO artifacts (job_id, position, name, size_bytes, sha256)
    SELECT job.id, file.position, file.name, file.size_bytes, decode(file.sha256, 'hex')
    FROM job, unnest($31::text[], $32::bigint[], $33::text[])
        WITH ORDINALITY AS file (name, size_bytes, sha256, position)
)
SELECT id FROM job
