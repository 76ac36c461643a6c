-- What operators say of groups. A group without a row is as it comes: weight 100, not readonly.
CREATE TABLE groups (
    id BIGINT NOT NULL PRIMARY KEY,
    weight BIGINT NOT NULL,
    readonly BOOLEAN NOT NULL
);
