#!/bin/sh
# Has a PostgreSQL describe every query of the store, so that they can be checked where there is none:
# writes .sqlx, from a cluster that is gone afterwards.
set -eu
binaries=$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -n 1)
directory=$(mktemp -d)

# PostgreSQL refuses to run as root.
as_other() {
  if [ "$(id -u)" = 0 ]; then
    setpriv --reuid=postgres --regid=postgres --clear-groups "$@"
  else
    "$@"
  fi
}

end() {
  as_other "$binaries/pg_ctl" --pgdata="$directory/data" --mode=immediate stop > /dev/null 2>&1 || true
  rm -rf "$directory"
}
trap end EXIT
if [ "$(id -u)" = 0 ]; then chown postgres:postgres "$directory"; fi

as_other "$binaries/initdb" --pgdata="$directory/data" --username=test --auth=trust --encoding=UTF8 \
  --no-locale --no-sync > /dev/null
as_other "$binaries/pg_ctl" --pgdata="$directory/data" --log="$directory/log" --wait --silent \
  --options="-c listen_addresses= -k $directory" start
export PGHOST="$directory" PGUSER=test PGDATABASE=postgres PGOPTIONS="-c search_path=tako"
"$binaries/psql" --quiet --command="CREATE SCHEMA tako"
for migration in src/store/migrations/*.sql; do
  "$binaries/psql" --quiet --set=ON_ERROR_STOP=1 --file="$migration"
done

rm -rf .sqlx
mkdir .sqlx
touch src/lib.rs
SQLX_OFFLINE=false SQLX_OFFLINE_DIR="$PWD/.sqlx" \
  DATABASE_URL="postgresql://test@localhost/postgres?host=$directory&options=-c%20search_path%3Dtako" \
  cargo check --locked --lib
echo "queries: $(ls .sqlx | wc -l) are described in .sqlx"
