-- Ends the job $1 if it waits, and has whoever runs it told if it runs.
WITH job AS (
    UPDATE jobs SET
        state = CASE WHEN state = 'queued' THEN 'cancelled' ELSE state END,
        ended_at = CASE WHEN state = 'queued' THEN clock_timestamp() END,
        cancel_asked_at = COALESCE(cancel_asked_at, clock_timestamp())
    WHERE id = $1 AND state IN ('queued', 'running')
    RETURNING id, state
), record AS (
    INSERT INTO records (job_id, error_type, error_message)
    SELECT id, 'cancelled', 'the job was cancelled before it began' FROM job
    WHERE state = 'cancelled'
), told AS (
    SELECT pg_notify('tako_cancel', id) FROM job WHERE state = 'running'
)
SELECT
    (SELECT state FROM job) AS state,
    (SELECT count(*) FROM told) AS told,
    (SELECT state FROM jobs WHERE id = $1) AS before
