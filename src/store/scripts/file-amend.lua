-- Writes what was not known of a file, or not for good, when its record was made.
-- KEYS[1] file
-- ARGV    field, value …
-- Returns 1 when written, 0 when the record is gone
-- Repeat  the same
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV))
return 1
