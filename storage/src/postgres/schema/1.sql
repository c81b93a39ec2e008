CREATE TABLE IF NOT EXISTS head (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    format integer NOT NULL,
    revision bigint NOT NULL
) WITH (fillfactor = 10);
INSERT INTO head (format, revision) VALUES (1, 0) ON CONFLICT DO NOTHING;

CREATE TABLE IF NOT EXISTS compaction (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    revision bigint NOT NULL
) WITH (fillfactor = 10);
INSERT INTO compaction (revision) VALUES (0) ON CONFLICT DO NOTHING;

CREATE TABLE IF NOT EXISTS current (
    key text COLLATE "C" PRIMARY KEY,
    created bigint NOT NULL,
    modified bigint NOT NULL,
    index integer NOT NULL,
    expires bigint NOT NULL,
    value bytea NOT NULL
);
CREATE INDEX IF NOT EXISTS current_expires ON current (expires) WHERE expires > 0;

CREATE TABLE IF NOT EXISTS history (
    revision bigint NOT NULL,
    index integer NOT NULL,
    time bigint NOT NULL,
    key text COLLATE "C" NOT NULL,
    prior_created bigint,
    prior_modified bigint,
    prior_value bytea,
    PRIMARY KEY (revision, index)
);
CREATE INDEX IF NOT EXISTS history_key ON history (key, revision);
