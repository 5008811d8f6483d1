-- The jobs with the ids $1 and all that is known of them but what they brought along, the newest first.
SELECT
    jobs.id, jobs.state, jobs.owner, jobs.job_type, jobs.idempotency_key, jobs.correlation_id,
    jobs.parent_id, jobs.relationship, jobs.attempts, jobs.max_attempts,
    (extract(epoch FROM jobs.created_at) * 1000000)::bigint AS "created_at!",
    (extract(epoch FROM jobs.started_at) * 1000000)::bigint AS started_at,
    (extract(epoch FROM jobs.ended_at) * 1000000)::bigint AS ended_at,
    payloads.image, payloads.code_sha256, payloads.input_sha256,
    records.runtime, records.start, records.exit_code, records.stdout AS "stdout?",
    records.stdout_bytes AS "stdout_bytes?", records.stderr AS "stderr?",
    records.stderr_bytes AS "stderr_bytes?", records.result, records.result_error, records.error_type,
    records.error_message, records.error_phase, records.phase_at_exit, records.sandbox_ms,
    records.startup_ms, records.execution_ms, records.total_ms, records.max_rss_mb,
    records.cpu_time_ms, records.wall_time_ms, records.oom_kills, records.artifacts_truncated AS "artifacts_truncated?",
    records.artifacts_skipped AS "artifacts_skipped?",
    records.job_id IS NOT NULL AS "has_record!",
    files.names AS "names: Vec<String>", files.sizes AS "sizes: Vec<i64>",
    files.digests AS "digests: Vec<Vec<u8>>"
FROM jobs
JOIN payloads ON payloads.job_id = jobs.id
LEFT JOIN records ON records.job_id = jobs.id
LEFT JOIN LATERAL (
    SELECT array_agg(name ORDER BY position) AS names, array_agg(size_bytes ORDER BY position) AS sizes,
        array_agg(sha256 ORDER BY position) AS digests
    FROM artifacts WHERE artifacts.job_id = jobs.id
) files ON true
WHERE jobs.id = ANY ($1)
ORDER BY jobs.created_at DESC, jobs.number DESC
