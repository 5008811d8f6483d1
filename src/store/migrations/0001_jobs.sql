-- Jobs, what they bring along, their attempts and their results. All of it lies in the schema `tako`,
-- which is on the search path of our connections and of nobody else's.

-- A job, from its acceptance to its end. What changes while it waits and runs is here, and little
-- else, since PostgreSQL writes a row anew with every change.
CREATE TABLE jobs (
    id text PRIMARY KEY CHECK (id ~ '^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$'),
    -- Order of arrival.
    number bigint GENERATED ALWAYS AS IDENTITY,
    state text NOT NULL CHECK (
        state IN ('queued', 'running', 'succeeded', 'failed', 'timeout', 'oom', 'cancelled')
    ),
    priority smallint NOT NULL CHECK (priority BETWEEN -100 AND 100),
    -- Whose job it is: keys take turns, and an idempotency key is theirs alone.
    owner text NOT NULL CHECK (length(owner) <= 64),
    -- Whose turn it is, in the time of the sequence `turns`.
    turn bigint NOT NULL,
    job_type text NOT NULL CHECK (length(job_type) <= 128),
    idempotency_key text CHECK (length(idempotency_key) BETWEEN 8 AND 255),
    fingerprint bytea CHECK (length(fingerprint) = 32),
    correlation_id text,
    client_address text,
    parent_id text,
    relationship text CHECK (relationship IN ('rerun', 'fork')),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Not to be claimed before: a retry waits a while.
    ready_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    started_at timestamptz,
    ended_at timestamptz,
    -- Attempts that have begun. Each has a token, and whoever writes of it has to show it. What follows is
    -- of the last one, also when it is over.
    attempts smallint NOT NULL CHECK (attempts >= 0),
    max_attempts smallint NOT NULL CHECK (max_attempts BETWEEN 1 AND 10),
    token uuid,
    -- Name of the process that runs it, anew with each start of it.
    worker text,
    claimed_at timestamptz,
    -- When the attempt is lost unless it is heard of again.
    lease_until timestamptz,
    cancel_asked_at timestamptz,
    CHECK (state <> 'running' OR token IS NOT NULL),
    CHECK (state <> 'running' OR worker IS NOT NULL),
    CHECK (state <> 'running' OR claimed_at IS NOT NULL),
    CHECK (state <> 'running' OR lease_until IS NOT NULL),
    CHECK ((state IN ('queued', 'running')) = (ended_at IS NULL)),
    CHECK ((idempotency_key IS NULL) = (fingerprint IS NULL))
) WITH (
    -- Room for a new version of a row on its own page, which then needs no new entries of indexes.
    fillfactor = 70,
    -- The queue is scanned from its front, where the dead rows are.
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000,
    autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_scale_factor = 0.2
);

-- What is claimed next.
CREATE INDEX jobs_queued ON jobs (priority DESC, turn, number) WHERE state = 'queued';
-- Where the last job of an owner stands.
CREATE INDEX jobs_queued_of_owner ON jobs (owner, turn DESC) WHERE state = 'queued';
-- Those that run are few: their workers find them here, and all of them are looked through for those that
-- are lost. Nothing that a heartbeat changes is in an index.
CREATE INDEX jobs_running ON jobs (id) WHERE state = 'running';
CREATE UNIQUE INDEX jobs_idempotency ON jobs (owner, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX jobs_ended ON jobs (ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX jobs_created ON jobs (created_at DESC, number DESC);
CREATE INDEX jobs_parent ON jobs (parent_id) WHERE parent_id IS NOT NULL;

-- The time in which owners take turns: the turn of the job that was claimed last. A sequence, since it
-- is read and written with every job, and leaves no dead rows.
CREATE SEQUENCE turns AS bigint MINVALUE 0 START 0;

-- All that an exact replay needs.
CREATE TABLE payloads (
    job_id text PRIMARY KEY REFERENCES jobs ON DELETE CASCADE,
    code text NOT NULL,
    -- JSON as it came. Not jsonb: it knows no NUL and no numbers as they were written.
    input text NOT NULL,
    code_sha256 bytea NOT NULL CHECK (length(code_sha256) = 32),
    input_sha256 bytea NOT NULL CHECK (length(input_sha256) = 32),
    requirements text[] NOT NULL DEFAULT '{}',
    -- The image that was asked for, and the one that it was then.
    image text NOT NULL,
    image_digest text,
    environment json NOT NULL DEFAULT '[]',
    memory_bytes bigint,
    millicpus integer,
    timeout_ms bigint,
    startup_timeout_ms bigint,
    network boolean NOT NULL DEFAULT false,
    -- Whether an attempt that had a network may be repeated.
    repeatable boolean NOT NULL DEFAULT false
);

-- Further files of `/input`.
CREATE TABLE input_files (
    job_id text NOT NULL REFERENCES jobs ON DELETE CASCADE,
    position smallint NOT NULL,
    name text NOT NULL,
    bytes bytea NOT NULL,
    PRIMARY KEY (job_id, position)
);

-- Attempts that are over, and how.
CREATE TABLE attempts (
    job_id text NOT NULL REFERENCES jobs ON DELETE CASCADE,
    attempt smallint NOT NULL,
    token uuid NOT NULL,
    worker text NOT NULL,
    claimed_at timestamptz NOT NULL,
    over_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    ending text NOT NULL CHECK (ending IN ('finished', 'lost', 'failed', 'returned')),
    reason text,
    PRIMARY KEY (job_id, token)
);

-- The one result of a job.
CREATE TABLE records (
    job_id text PRIMARY KEY REFERENCES jobs ON DELETE CASCADE,
    -- Of the attempt that has ended the job; null where none did.
    token uuid,
    execution_id text,
    runtime text,
    image text,
    start text CHECK (start IN ('cold', 'warm', 'restored')),
    exit_code smallint CHECK (exit_code BETWEEN 0 AND 255),
    -- The beginnings of the streams as bytes, since text knows no NUL, and how long the whole was.
    stdout bytea NOT NULL DEFAULT '',
    stdout_bytes bigint NOT NULL DEFAULT 0,
    stderr bytea NOT NULL DEFAULT '',
    stderr_bytes bigint NOT NULL DEFAULT 0,
    -- What `/output/result.json` held, if that was JSON.
    result text,
    result_error text,
    error_type text,
    error_message text,
    error_phase text,
    phase_at_exit text,
    started_at timestamptz,
    ended_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    sandbox_ms bigint,
    startup_ms bigint,
    execution_ms bigint,
    total_ms bigint,
    max_rss_mb double precision,
    cpu_time_ms bigint,
    wall_time_ms bigint,
    oom_kills bigint,
    artifacts_truncated boolean NOT NULL DEFAULT false,
    artifacts_skipped json NOT NULL DEFAULT '[]',
    CHECK ((error_type IS NULL) = (error_message IS NULL))
);

-- Files that jobs have left. Their bytes lie in the object store, under their digest.
CREATE TABLE artifacts (
    job_id text NOT NULL REFERENCES jobs ON DELETE CASCADE,
    position smallint NOT NULL,
    name text NOT NULL,
    size_bytes bigint NOT NULL,
    sha256 bytea NOT NULL CHECK (length(sha256) = 32),
    PRIMARY KEY (job_id, position)
);
CREATE INDEX artifacts_sha256 ON artifacts (sha256);

-- Jobs that we, not they, have failed.
CREATE TABLE dead_letters (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id text NOT NULL,
    -- Without code, input and environment.
    job jsonb NOT NULL,
    error_type text NOT NULL,
    error_message text NOT NULL,
    retry_count smallint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    client_address text,
    correlation_id text
);
CREATE INDEX dead_letters_created ON dead_letters (created_at DESC, id DESC);

-- Who did what to which job.
CREATE TABLE audit (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    owner text NOT NULL,
    action text NOT NULL,
    job_id text,
    client_address text,
    detail jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX audit_at ON audit (at);
