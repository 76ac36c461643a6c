CREATE TABLE users (
    name TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    grp BIGINT NOT NULL
);

-- A row without an object (object = 0) is the versioned mark of a delete.
CREATE TABLE files (
    "user" TEXT COLLATE "C" NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    object BIGINT NOT NULL,
    grp BIGINT NOT NULL,
    path TEXT NOT NULL,
    bytes BIGINT NOT NULL,
    type TEXT NOT NULL,
    crc BIGINT NOT NULL,
    modified_ms BIGINT NOT NULL,
    hlc BIGINT NOT NULL,
    node BIGINT NOT NULL,
    PRIMARY KEY ("user", name)
);

-- The ID servers' mark, when it is kept here: every segment number below it was given out.
CREATE TABLE segment_numbers (
    one BOOLEAN NOT NULL PRIMARY KEY DEFAULT TRUE CHECK (one),
    mark BIGINT NOT NULL
);
