CREATE TABLE users (
    name TEXT NOT NULL PRIMARY KEY,
    grp INTEGER NOT NULL
) WITHOUT ROWID;

-- A row without an object (object = 0) is the versioned mark of a delete.
CREATE TABLE files (
    user TEXT NOT NULL,
    name TEXT NOT NULL,
    object INTEGER NOT NULL,
    grp INTEGER NOT NULL,
    path TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    type TEXT NOT NULL,
    crc INTEGER NOT NULL,
    modified_ms INTEGER NOT NULL,
    hlc INTEGER NOT NULL,
    node INTEGER NOT NULL,
    PRIMARY KEY (user, name)
) WITHOUT ROWID;
