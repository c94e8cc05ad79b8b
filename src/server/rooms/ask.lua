-- Says something to all instances, and answers with those that live.
--
-- KEYS[1] the instances, by when their leases end (Unix ms). ARGV: how to publish, the channel, what is said.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call(ARGV[1], ARGV[2], ARGV[3])
return redis.call('ZRANGEBYSCORE', KEYS[1], string.format('(%.0f', now), '+inf')
