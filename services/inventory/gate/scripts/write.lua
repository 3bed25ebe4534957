-- Writes what PostgreSQL knows of one flash sale: the units left, and customers that the hash lacks.
-- KEYS: the units left, the units by customer. ARGV: units left, seconds to keep both, 1 if all customers are in the
-- hash by now or 0, customer, units, …
-- Returns how many of the keys existed. A customer's count is kept if there is one: it may be of more reservations.
if redis.call('TYPE', KEYS[2]).ok ~= 'hash' then redis.call('DEL', KEYS[2]) end
local existed = redis.call('EXISTS', KEYS[1], KEYS[2])
for i = 4, #ARGV, 2 do redis.call('HSETNX', KEYS[2], ARGV[i], ARGV[i + 1]) end
if existed == 2 or ARGV[3] == '1' then redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2]) end
redis.call('EXPIRE', KEYS[2], ARGV[2])
return existed
