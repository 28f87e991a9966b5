// Calls every RPC that the specification of the admin API prints, once at least, in the order in which an operator might.
//
//   PRISM_ADMIN_TOKEN=… node call_all.js HOST:PORT CA_FILE NAMESPACE
//
// NAMESPACE holds a live session, which the client looks at and ends. Prints one line of JSON per call:
// {"rpc", "ok", "answer"} or {"rpc", "ok": false, "code", "error"}; exit code 0 if every call was answered.
'use strict';

const fs = require('node:fs');
const path = require('node:path');
const grpc = require('@grpc/grpc-js');
const protoLoader = require('@grpc/proto-loader');

const CALL_WITHIN_MS = 30_000;
const NAMESPACE = 'seed-a';
const CONFIG = 'seed-a-orders';

const [endpoint, caFile, liveNamespace] = process.argv.slice(2);
const token = process.env.PRISM_ADMIN_TOKEN;
if (!endpoint || !caFile || !liveNamespace || !token) {
  console.error('usage: PRISM_ADMIN_TOKEN=TOKEN node call_all.js HOST:PORT CA_FILE NAMESPACE');
  process.exit(2);
}

const definition = protoLoader.loadSync('prism/admin/v1/admin_service.proto', {
  includeDirs: [path.resolve(__dirname)],
  keepCase: true,
  longs: String,
  enums: String,
  defaults: true,
});
const { AdminService } = grpc.loadPackageDefinition(definition).prism.admin.v1;
const client = new AdminService(endpoint, grpc.credentials.createSsl(fs.readFileSync(caFile)));

// As the specification prints it under "Authentication".
function headers() {
  const metadata = new grpc.Metadata();
  metadata.set('x-admin-token', token);
  metadata.set('x-admin-user', 'alice@example.com');
  return metadata;
}

let failures = 0;

function report(rpc, error, answer) {
  if (error) failures += 1;
  const outcome = error
    ? { rpc, ok: false, code: grpc.status[error.code] ?? String(error), error: error.details ?? error.message }
    : { rpc, ok: true, answer };
  console.log(JSON.stringify(outcome));
  return answer;
}

/** A unary call; gives its answer, or nothing if it failed. */
function call(rpc, request) {
  const options = { deadline: Date.now() + CALL_WITHIN_MS };
  return new Promise((resolve) => {
    client[rpc](request, headers(), options, (error, answer) => resolve(report(rpc, error, answer)));
  });
}

/** A call with a stream of answers; gives all of them. */
function collect(rpc, request) {
  const stream = client[rpc](request, headers(), { deadline: Date.now() + CALL_WITHIN_MS });
  const answers = [];
  return new Promise((resolve) => {
    stream.on('data', (answer) => answers.push(answer));
    stream.on('error', (error) => resolve(report(rpc, error)));
    stream.on('end', () => resolve(report(rpc, null, answers)));
  });
}

function timestamp(milliseconds) {
  return { seconds: Math.floor(milliseconds / 1000), nanos: (milliseconds % 1000) * 1_000_000 };
}

function config(version) {
  return {
    name: CONFIG,
    version,
    pattern: 'ACCESS_PATTERN_QUEUE',
    backend: { type: 'BACKEND_TYPE_SQLITE', options: { partitions: '2' } },
    namespace: NAMESPACE,
  };
}

async function main() {
  await call('CreateNamespace', {
    name: NAMESPACE,
    description: 'made by a stranger',
    quota: { max_sessions: 10, max_rps: 100 },
  });
  await call('UpdateNamespace', { name: NAMESPACE, description: 'changed', quota: { max_sessions: 20 } });
  await call('ListNamespaces', { page_size: 1000 });

  await call('CreateConfig', { config: config('1') });
  await call('UpdateConfig', { name: CONFIG, config: config('2') });
  await call('GetConfig', { name: CONFIG });
  await call('ListConfigs', { namespace: NAMESPACE, pattern: 'ACCESS_PATTERN_QUEUE', page_size: 10 });

  const listed = await call('ListSessions', { namespace: liveNamespace, status: 'SESSION_STATUS_ACTIVE' });
  const session_id = listed?.sessions[0]?.session_id ?? '';
  await call('GetSession', { session_id });
  await call('TerminateSession', { session_id, force: true, reason: 'a stranger looked in' });

  await call('ListBackends', {});
  await call('GetBackendStatus', { backend_type: 'sqlite' });
  await call('GetMetrics', { window: { seconds: 60 } });

  await call('SetMaintenanceMode', {
    enabled: true,
    message: 'a short break',
    scheduled_end: timestamp(Date.now() + 3_600_000),
  });
  await call('SetMaintenanceMode', { enabled: false });
  await call('DrainConnections', { namespace: NAMESPACE, timeout: { seconds: 5 } });

  await call('DeleteConfig', { name: CONFIG });
  await call('DeleteNamespace', { name: NAMESPACE });
  await collect('GetAuditLog', { actor: 'alice@example.com', limit: 100 });
}

main().then(() => {
  client.close();
  process.exitCode = failures === 0 ? 0 : 1;
});
