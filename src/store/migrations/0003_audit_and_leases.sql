-- What was done to one job.
CREATE INDEX audit_job ON audit (job_id, id DESC) WHERE job_id IS NOT NULL;

-- How long a lease is: none ends later than so long from now, unless the clock was set back.
ALTER TABLE jobs ADD COLUMN lease interval;
