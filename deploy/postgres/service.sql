-- Creates one service's database and roles. roles.sql sets the variables and includes this file.
SELECT format('CREATE ROLE %I LOGIN', role) FROM unnest(ARRAY[:'service', :'owner']) AS role
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) \gexec

ALTER ROLE :"service" PASSWORD :'password' CONNECTION LIMIT 66;
ALTER ROLE :"owner" PASSWORD :'owner_password' CONNECTION LIMIT 10;
ALTER ROLE :"service" SET statement_timeout = '15s';
ALTER ROLE :"service" SET idle_in_transaction_session_timeout = '15s';
ALTER ROLE :"service" SET lock_timeout = '5s';
-- A migration may run long, but a wait for a lock would block other statements, so it times out.
ALTER ROLE :"owner" SET idle_in_transaction_session_timeout = '15s';
ALTER ROLE :"owner" SET lock_timeout = '5s';

SELECT format('CREATE DATABASE %I OWNER %I', :'service', :'owner')
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'service') \gexec
REVOKE CONNECT, TEMPORARY ON DATABASE :"service" FROM PUBLIC;
GRANT CONNECT ON DATABASE :"service" TO :"service";

\connect :service
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO :"service";
-- The role's privileges on tables are in the service's sql/grants.py; each migration applies them.
-- Large objects would be storage outside of all tables.
REVOKE EXECUTE ON FUNCTION lo_creat(integer), lo_create(oid), lo_from_bytea(oid, bytea) FROM PUBLIC;
\connect postgres
