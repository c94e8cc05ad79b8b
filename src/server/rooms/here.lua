-- Keeps who is in a room on an instance, and tells the others. Where it was forgotten who else is there, all tell again.
--
-- KEYS[1] who is there: fields are `<node> <user>`, values `<number> <sockets>`. ARGV: how to publish, the channel, the
-- room, the node, 1 if these are all its users, how many ms the room lives on at least, the users as JSON for the channel, the
-- number under which the node tells; then each user and its sockets.
local how, channel, room, node, is_whole = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local is_forgotten = is_whole ~= '1' and redis.call('EXISTS', KEYS[1]) == 0
local there = {}
for at = 9, #ARGV, 2 do
    local field = node .. ' ' .. ARGV[at]
    there[field] = true
    if ARGV[at + 1] == '0' then
        redis.call('HDEL', KEYS[1], field)
    else
        redis.call('HSET', KEYS[1], field, ARGV[8] .. ' ' .. ARGV[at + 1])
    end
end
if is_whole == '1' then
    local prefix = node .. ' '
    for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
        if string.sub(field, 1, #prefix) == prefix and not there[field] then
            redis.call('HDEL', KEYS[1], field)
        end
    end
end
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[6]) then
    redis.call('PEXPIRE', KEYS[1], tonumber(ARGV[6]))
end
redis.call(how, channel, table.concat({ '!', room, node, is_whole, ARGV[7] }, ' '))
if is_forgotten then
    redis.call(how, channel, '? ' .. room)
end
return 1
