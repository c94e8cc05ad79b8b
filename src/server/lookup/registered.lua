-- Who has registered and has a lease that has not ended by this server's clock: the time, then each member and its lease's end.
-- What is too long to be a member is cut, so that it is refused and not carried about.
local time = redis.call('TIME')
local now = string.format('%.6f', time[1] + time[2] / 1000000)
local found = redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. now, '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[1])
for place = 1, #found, 2 do
  found[place] = string.sub(found[place], 1, 300)
end
table.insert(found, 1, now)
return found
