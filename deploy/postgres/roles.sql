-- Creates the databases and roles of the mesh with psql. Safe to repeat.
--
-- Every service has one database and two roles: `<service>_owner` migrates it, `<service>` reads and writes rows, as far
-- as the service's sql/grants.py permits. Neither role can open another database. Passwords come from the environment
-- (CATALOG_PASSWORD, CATALOG_OWNER_PASSWORD, ...), never from the command line.
\set ON_ERROR_STOP on
\set QUIET on
SET client_min_messages = warning;
-- The statements below contain passwords, so the server logs none of them.
SELECT format('SET %I = %L', name, value) FROM (VALUES ('log_statement', 'none'), ('log_min_error_statement', 'panic'),
    ('log_min_duration_statement', '-1')) AS quiet (name, value)
WHERE has_parameter_privilege(name, 'SET') \gexec

\set service catalog
\set owner catalog_owner
\getenv password CATALOG_PASSWORD
\getenv owner_password CATALOG_OWNER_PASSWORD
\ir service.sql

\set service identity
\set owner identity_owner
\getenv password IDENTITY_PASSWORD
\getenv owner_password IDENTITY_OWNER_PASSWORD
\ir service.sql

\set service inventory
\set owner inventory_owner
\getenv password INVENTORY_PASSWORD
\getenv owner_password INVENTORY_OWNER_PASSWORD
\ir service.sql

\set service orders
\set owner orders_owner
\getenv password ORDERS_PASSWORD
\getenv owner_password ORDERS_OWNER_PASSWORD
\ir service.sql

\set service payments
\set owner payments_owner
\getenv password PAYMENTS_PASSWORD
\getenv owner_password PAYMENTS_OWNER_PASSWORD
\ir service.sql

REVOKE CONNECT, TEMPORARY ON DATABASE postgres, template1 FROM PUBLIC;
