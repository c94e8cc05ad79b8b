-- Appends a revocation to the log, and lets entries go that no access token can be affected by any more. What has a second
-- step (something goes from a user's record) is marked as unfinished in the same moment; whoever makes that step takes
-- the mark away.
--
-- KEYS[1] the log, KEYS[2] the marks, each with the time of its entry's number. ARGV: until when, by this server's clock,
-- it may be done (Unix ms; empty: for ever), kind, id, at (Unix ms; empty: now by this server), by, the user (empty: not
-- known), how long entries are kept (ms), 1 if there is a second step. Answers with `at`.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if now > (tonumber(ARGV[1]) or now) then
    return redis.error_reply('LATE whoever asked was told that it failed')
end

local function append(trim, kind, id, at, by, user)
    local arguments = { KEYS[1] }
    if trim then
        arguments = { KEYS[1], 'MINID', '~', string.format('%.0f', trim) }
    end
    for _, argument in ipairs({ '*', 'kind', kind, 'id', id, 'at', at, 'by', by }) do
        table.insert(arguments, argument)
    end
    if user ~= '' then
        table.insert(arguments, 'user')
        table.insert(arguments, user)
    end
    local number = redis.call('XADD', unpack(arguments))
    return string.match(number, '^%d+')
end

-- An entry whose second step is not made does not go with its time: it is written again, as it was. Two for each that is
-- new are as many as keep the log from growing, however many there are; meanwhile none older than the oldest goes.
local oldest = math.max(0, now - tonumber(ARGV[7]))
local trim, again = oldest, 2
while true do
    -- First of all, so that a key of another type has changed nothing.
    local mark, written = unpack(redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES'))
    if not mark or tonumber(written) >= oldest then
        break
    end
    if again == 0 then
        trim = tonumber(written)
        break
    end
    again = again - 1
    local kind, id, at, user, by = string.match(mark, '^(%S+) (%S+) (%S+) (%S+) (.*)$')
    if kind then
        redis.call('ZADD', KEYS[2], append(nil, kind, id, at, by, user), mark)
    else
        redis.call('ZREM', KEYS[2], mark)
    end
end

local kind, id, by, user = ARGV[2], ARGV[3], ARGV[5], ARGV[6]
local at = string.format('%.0f', tonumber(ARGV[4]) or now)
local written = append(trim, kind, id, at, by, user)
if ARGV[8] == '1' then
    redis.call('ZADD', KEYS[2], 'NX', written, table.concat({ kind, id, at, user, by }, ' '))
end
return at
