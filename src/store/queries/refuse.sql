-- Ends the job $1 as failed, of the type $3 and for the reason $4: its attempt $2 cannot be run.
WITH job AS (
    UPDATE jobs SET state = 'failed', ended_at = clock_timestamp()
    WHERE id = $1 AND token = $2 AND state = 'running'
    RETURNING id, attempts, worker, claimed_at
), attempt AS (
    INSERT INTO attempts (job_id, attempt, token, worker, claimed_at, ending, reason)
    SELECT id, attempts, $2, worker, claimed_at, 'failed', $4 FROM job
), record AS (
    INSERT INTO records (job_id, token, error_type, error_message)
    SELECT id, $2, $3, $4 FROM job
)
SELECT id FROM job
