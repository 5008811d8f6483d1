-- Takes the attempts with the ids $1 and the tokens $2 away, if $3 only those whose lease is over. $4 is
-- how they have ended and $5 why; a job that waits again does so for $6 at least, if that is no null.
WITH lost AS (
    SELECT jobs.*, payloads.image, payloads.network AND NOT payloads.repeatable AS at_most_once
    FROM jobs
    JOIN unnest($1::text[], $2::uuid[]) AS held (held_id, held_token)
        ON jobs.id = held_id AND jobs.token = held_token
    JOIN payloads ON payloads.job_id = jobs.id
    WHERE jobs.state = 'running' AND (NOT $3 OR jobs.lease_until <= clock_timestamp())
    -- All lock in the same order.
    ORDER BY jobs.id
    FOR UPDATE OF jobs
), decided AS (
    SELECT *, CASE
        WHEN cancel_asked_at IS NOT NULL THEN 'cancelled'
        -- Without a reason it was not begun.
        WHEN $4 = 'returned' AND NOT (at_most_once AND $5 <> '') THEN 'queued'
        WHEN at_most_once OR attempts >= max_attempts THEN 'failed'
        ELSE 'queued'
    END AS next
    FROM lost
), job AS (
    UPDATE jobs SET
        state = next,
        attempts = jobs.attempts - CASE WHEN $4 = 'returned' AND next = 'queued' THEN 1 ELSE 0 END,
        ended_at = CASE WHEN next <> 'queued' THEN clock_timestamp() END,
        ready_at = COALESCE(clock_timestamp() + $6::interval, '-infinity'),
        -- It had its turn, and is the next again.
        turn = LEAST(jobs.turn, (SELECT last_value FROM turns))
    FROM decided WHERE jobs.id = decided.id
    RETURNING jobs.id, next
), attempt AS (
    INSERT INTO attempts (job_id, attempt, token, worker, claimed_at, ending, reason)
    SELECT id, attempts, token, worker, claimed_at, $4, $5 FROM decided WHERE $5 <> ''
), record AS (
    INSERT INTO records (job_id, image, error_type, error_message)
    SELECT id, image,
        CASE WHEN next = 'cancelled' THEN 'cancelled' ELSE 'interrupted' END,
        CASE
            WHEN next = 'cancelled' THEN 'the job was cancelled'
            WHEN at_most_once THEN
                'the job was interrupted, and not repeated since it had a network: ' || $5
            ELSE 'the job was interrupted ' || attempts || ' times; the last time: ' || $5
        END
    FROM decided WHERE next <> 'queued'
), letter AS (
    INSERT INTO dead_letters (
        job_id, job, error_type, error_message, retry_count, client_address, correlation_id
    )
    SELECT id,
        jsonb_build_object(
            'job_type', job_type, 'owner', owner, 'image', image, 'parent_id', parent_id,
            'has_idempotency_key', idempotency_key IS NOT NULL
        ),
        'interrupted', $5, attempts, client_address, correlation_id
    FROM decided WHERE next = 'failed'
)
SELECT id, next AS "next!" FROM job
