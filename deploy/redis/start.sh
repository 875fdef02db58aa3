#!/bin/sh
# Starts a Redis or Valkey server with the users of users.acl.template; further arguments go to the server.
#
#   REDIS_SERVER     the server's program (default: redis-server)
#   REDIS_SECRETS    a folder with one file a role: uploader, worker, dashboard, trainer, moderator, admin, each with
#                    that role's password, as Docker's and Kubernetes' secrets are mounted; while passwords change,
#                    one a line, and all of them are good
#   REDIS_RUN        a folder for the finished ACL file (default: /run/redis-acl), in memory where there is a choice
#   REDIS_MAXMEMORY  what the data may take, such as 4gb (default: half of what the container or the machine has)
#
# A role without a file cannot log in. The ACL file holds SHA-256 sums only: choose passwords that cannot be guessed.
set -eu
umask 077
here=$(dirname "$0")
server=${REDIS_SERVER:-redis-server}
secrets=${REDIS_SECRETS:?"set REDIS_SECRETS to the folder with one password file a role"}
run=${REDIS_RUN:-/run/redis-acl}

# Without the line's end that an editor adds, and without empty lines, which would let anybody in.
sums() {
  tr -d '\r' < "$1" | while IFS= read -r password || [ -n "$password" ]; do
    [ -z "$password" ] || printf '#%s ' "$(printf %s "$password" | sha256sum | cut -d ' ' -f 1)"
  done
}

# Half: a server that rewrites its append-only file may need a second copy of what changes meanwhile.
half_of_memory() {
  bytes=$(awk '/^MemTotal:/ { printf "%.0f", $2 * 1024 }' /proc/meminfo)
  limit=$(cat /sys/fs/cgroup/memory.max 2>/dev/null || echo max)
  if [ "$limit" != max ] && [ "$limit" -lt "$bytes" ]; then bytes=$limit; fi
  echo $((bytes / 2))
}

mkdir -p "$run"
acl=$run/users.acl
: > "$acl.new"
grep '^user ' "$here/users.acl.template" | while read -r word name rest; do
  if [ -s "$secrets/$name" ]; then
    echo "$word $name $(sums "$secrets/$name")$rest"
  else
    echo "$word $name $rest"
  fi >> "$acl.new"
done
[ -s "$acl.new" ] || { echo "users.acl.template lists no user: copy it beside start.sh" >&2; exit 2; }
mv "$acl.new" "$acl"
maxmemory=${REDIS_MAXMEMORY:-$(half_of_memory)}
exec "$server" "$here/redis.conf" --aclfile "$acl" --maxmemory "$maxmemory" "$@"
