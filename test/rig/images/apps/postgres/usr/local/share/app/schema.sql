CREATE TABLE reading (sensor text NOT NULL, at timestamptz NOT NULL DEFAULT now(), value double precision NOT NULL);
CREATE INDEX reading_at ON reading (sensor, at);
INSERT INTO reading (sensor, value) VALUES ('depth', 42.5), ('heading', 271);
