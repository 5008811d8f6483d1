-- How many bytes of files each owner has, so that there can be an end to it: the sum of what is in
-- `artifacts`, kept by whoever writes there, in the same transaction.

-- Also of jobs that are gone when their files go.
ALTER TABLE artifacts ADD COLUMN owner text NOT NULL DEFAULT '';
UPDATE artifacts SET owner = jobs.owner FROM jobs WHERE jobs.id = artifacts.job_id AND jobs.owner <> '';

-- Several rows of an owner, whose sum counts: a transaction writes one that nobody else is writing, so that
-- none waits for another. There are as many as there were transactions at the same moment.
CREATE TABLE artifact_usage (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    owner text NOT NULL,
    bytes bigint NOT NULL
) WITH (
    -- Room for new versions of rows, which are many.
    fillfactor = 10,
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 0
);
CREATE INDEX artifact_usage_owner ON artifact_usage (owner);
INSERT INTO artifact_usage (owner, bytes)
SELECT owner, sum(size_bytes) FROM artifacts GROUP BY owner;

-- Once for each statement, whatever its rows. The schema is named: also who has another search path may
-- delete jobs.
CREATE FUNCTION count_artifacts() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    change record;
BEGIN
    FOR change IN
        SELECT owner, sum(CASE TG_OP WHEN 'INSERT' THEN size_bytes ELSE -size_bytes END) AS bytes
        FROM changed GROUP BY owner
    LOOP
        UPDATE tako.artifact_usage SET bytes = artifact_usage.bytes + change.bytes WHERE id = (
            SELECT id FROM tako.artifact_usage WHERE owner = change.owner LIMIT 1 FOR UPDATE SKIP LOCKED
        );
        IF NOT FOUND THEN
            INSERT INTO tako.artifact_usage (owner, bytes) VALUES (change.owner, change.bytes);
        END IF;
    END LOOP;
    RETURN NULL;
END $$;
CREATE TRIGGER count_inserted AFTER INSERT ON artifacts
    REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION count_artifacts();
CREATE TRIGGER count_deleted AFTER DELETE ON artifacts
    REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION count_artifacts();
