-- Writes what became of one attempt of a provision at leasing a machine, whatever the provision's state: who asked for
-- a machine must be able to say that there is one.
-- KEYS[1] provision
-- ARGV    number of the attempt · what is new of it, as a JSON object
-- Returns 1 when written, 0 when the provision or the attempt is gone, or it is over: only a machine that turns up
--         after all opens it again; 0, too, for news that there is none, or that nobody knows, of one that was found
-- Repeat  the same
local field = ATTEMPT .. ARGV[1]
local text = redis.call('HGET', KEYS[1], field)
if not text then return 0 end
local attempt, news = cjson.decode(text), cjson.decode(ARGV[2])
local isOver = OVER[attempt.state]
if isOver and not (attempt.state == 'none' and news.state == 'there') then return 0 end
if isOver then attempt.endedAt = cjson.null end
-- Who asked for it may hear nothing for long, and looked at a list that is older than what was found meanwhile.
local isFound = attempt.machine ~= cjson.null and attempt.machine
if isFound and (news.state == 'none' or news.state == 'unknown') then return 0 end
-- A second machine under its name is not this attempt's: whoever finds it gives it back.
if isFound then news.machine = nil end
-- What is being given back does not come back.
if attempt.state == 'leaving' and not OVER[news.state] then news.state = nil end
for name, value in pairs(news) do attempt[name] = value end
redis.call('HSET', KEYS[1], field, cjson.encode(attempt))
return 1
