-- Counts requests of one key, whether they conform or not: until when it owes something moves on by what they are worth.
--
-- KEYS[1] the key. ARGV: nanoseconds in which one request is earned; how many there are. Answers the nanoseconds that are
-- owed now. The key goes when nothing is owed any more.

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local owed_until = math.max(tonumber(redis.call('GET', KEYS[1]) or '0') or 0, now) + ARGV[1] * ARGV[2] / 1000
local owed = owed_until - now
redis.call('SET', KEYS[1], string.format('%.3f', owed_until), 'PX', string.format('%.0f', math.ceil(owed / 1000) + 1))
return string.format('%.0f', owed * 1000)
