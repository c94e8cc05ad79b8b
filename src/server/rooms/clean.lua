-- Takes out of who is in a room what is not so any more.
--
-- KEYS[1] who is there. ARGV: fields and their values. What has another value by now was told again, and stays.
local cleaned = 0
for at = 1, #ARGV, 2 do
    if redis.call('HGET', KEYS[1], ARGV[at]) == ARGV[at + 1] then
        cleaned = cleaned + redis.call('HDEL', KEYS[1], ARGV[at])
    end
end
return cleaned
