-- What was done to one job.
CREATE INDEX audit_job ON audit (job_id, id DESC) WHERE job_id IS NOT NULL;
