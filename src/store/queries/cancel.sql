-- Ends the job $1 if it waits, and has whoever runs it told if it runs. It is $2 who wants that, from $3.
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
), note AS (
    INSERT INTO audit (owner, action, job_id, client_address, detail)
    SELECT $2, 'cancel', $1, $3, jsonb_build_object('outcome', outcome, 'state', state)
    FROM (
        SELECT CASE WHEN state = 'running' THEN 'asked' ELSE 'cancelled' END, state FROM job
        UNION ALL
        -- One that ends while its row is waited for is looked at once more.
        SELECT 'too_late', state FROM jobs WHERE id = $1 AND state NOT IN ('queued', 'running')
    ) AS done (outcome, state)
), told AS (
    SELECT pg_notify('tako_cancel', '') FROM job WHERE state = 'running'
)
SELECT
    (SELECT state FROM job) AS state,
    (SELECT count(*) FROM told) AS told,
    (SELECT state FROM jobs WHERE id = $1) AS before
