// An OpenID Connect provider on this machine: the certified library oidc-provider, with the accounts of accounts.js, and
// a second port over which a test makes it behave well or badly.
//
//   node server.js '{"tls": {"key": "FILE", "cert": "FILE"}}'
//
// Prints one line of JSON with both addresses when it is ready. Ends when its standard input does, so that it never
// outlives whoever started it.

import { createPrivateKey, generateKeyPairSync } from 'node:crypto';
import { readFileSync } from 'node:fs';
import http from 'node:http';
import https from 'node:https';

import Provider from 'oidc-provider';
import MemoryAdapter from 'oidc-provider/lib/adapters/memory_adapter.js';

import { claimsOf, clients, findAccount } from './accounts.js';

const options = JSON.parse(process.argv[2] ?? '{}');
const scheme = options.tls ? 'https' : 'http';

// What a test may change while it runs.
const state = {
  // `up`, `reset` (connections are cut at once, as on a dead machine), `hang` (requests are taken and never answered).
  mode: 'up',
  // Whether the keys are published; the rest of the provider answers all the same.
  jwks: true,
  // The algorithm of access tokens.
  alg: 'RS256',
  // Seconds.
  accessToken: 3600,
  refreshToken: 86400,
  deviceCode: 600,
  interval: 1,
  // How many of the next requests for a device's token are told to slow down.
  slowDown: 0,
};
const counts = { discovery: 0, jwks: 0, device: 0, poll: 0, refresh: 0, clientCredentials: 0 };

// Everything it gave out that nobody else may see.
const secrets = new Set();

let generation = 0;

function newKeys() {
  generation += 1;
  // By way of PEM: exporting a key while node collects the job that made it can wait for itself for ever.
  const privateKeyEncoding = { type: 'pkcs8', format: 'pem' };
  const publicKeyEncoding = { type: 'spki', format: 'pem' };
  const made = (type, details) => generateKeyPairSync(type, { ...details, privateKeyEncoding, publicKeyEncoding });
  const of = (type, details, alg) => ({
    ...createPrivateKey(made(type, details).privateKey).export({ format: 'jwk' }),
    kid: `${alg}-${generation}`,
    alg,
    use: 'sig',
  });
  return [
    of('rsa', { modulusLength: 2048 }, 'RS256'),
    of('ec', { namedCurve: 'P-256' }, 'ES256'),
    of('ed25519', undefined, 'EdDSA'),
  ];
}

// What is stored is kept beside any one instance: grants and sessions stay when keys change, as they do when a real provider
// starts again. (The library itself gives each instance a memory of its own.)
class Storage extends MemoryAdapter {}

// The scope of each resource, which is the audience of its tokens.
const resources = { 'urn:prism:admin': 'prism.admin', 'urn:prism:data': 'prism.data', 'urn:prism:other': 'prism.admin' };

function configuration(keys) {
  return {
    adapter: Storage,
    clients,
    findAccount,
    jwks: { keys },
    scopes: ['openid', 'offline_access'],
    enabledJWA: { idTokenSigningAlgValues: ['RS256', 'ES256', 'EdDSA'] },
    cookies: { keys: ['one run, one machine'] },
    extraTokenClaims: (context, token) => claimsOf(token),
    issueRefreshToken: (context, client) => client.grantTypeAllowed('refresh_token'),
    rotateRefreshToken: true,
    features: {
      deviceFlow: { enabled: true },
      clientCredentials: { enabled: true },
      revocation: { enabled: true },
      resourceIndicators: {
        enabled: true,
        defaultResource: (context, client, granted) => granted?.[0] ?? 'urn:prism:admin',
        useGrantedResource: () => true,
        getResourceServerInfo: (context, resource) => ({
          scope: resources[resource] ?? '',
          audience: resource,
          accessTokenTTL: state.accessToken,
          accessTokenFormat: 'jwt',
          jwt: { sign: { alg: state.alg } },
        }),
      },
    },
    ttl: {
      AccessToken: () => state.accessToken,
      ClientCredentials: () => state.accessToken,
      RefreshToken: () => state.refreshToken,
      DeviceCode: () => state.deviceCode,
      Grant: () => 86400,
      IdToken: () => 3600,
      Interaction: () => 3600,
      Session: () => 86400,
    },
  };
}

function provider(issuer, keys) {
  const made = new Provider(issuer, configuration(keys));
  made.use(async (context, next) => {
    if (context.path.endsWith('/token') && context.method === 'POST' && state.slowDown > 0) {
      state.slowDown -= 1;
      context.status = 400;
      context.body = { error: 'slow_down' };
      return;
    }
    await next();
    const { route, params, body } = context.oidc ?? {};
    for (const name of ['device_code', 'access_token', 'refresh_token', 'id_token']) {
      if (context.body?.[name]) secrets.add(context.body[name]);
    }
    if (route === 'device_authorization' && context.status === 200) {
      counts.device += 1;
      context.body.interval = state.interval;
    } else if (route === 'token') {
      const grant = params?.grant_type ?? body?.grant_type ?? '';
      if (grant === 'refresh_token') counts.refresh += 1;
      else if (grant === 'client_credentials') counts.clientCredentials += 1;
      else counts.poll += 1;
    } else if (route === 'discovery') {
      counts.discovery += 1;
    }
  });
  return made.callback();
}

let keys = newKeys();
let answer;

function serve(request, response) {
  if (state.mode === 'hang') return;
  if (request.url.startsWith('/jwks')) {
    counts.jwks += 1;
    if (!state.jwks) {
      response.writeHead(503).end();
      return;
    }
  }
  answer(request, response);
}

const tls = options.tls && { key: readFileSync(options.tls.key), cert: readFileSync(options.tls.cert) };
const server = tls ? https.createServer(tls, serve) : http.createServer(serve);
const open = new Set();
server.on('connection', (socket) => {
  open.add(socket);
  socket.on('close', () => open.delete(socket));
  if (state.mode === 'reset') socket.resetAndDestroy();
});

function cutConnections() {
  for (const socket of open) socket.resetAndDestroy();
}

// Each word of a test, with what it answers.
const commands = {
  counts: () => counts,
  secrets: () => [...secrets],
  set(change) {
    Object.assign(state, change);
    if (change.mode) cutConnections();
    return state;
  },
  // New keys sign from now on. With `keep` the old ones are still published.
  rotate({ keep }) {
    const made = newKeys();
    keys = keep ? [...made, ...keys] : made;
    answer = provider(issuer, keys);
    return { kids: keys.map((key) => key.kid) };
  },
};

const control = http.createServer(async (request, response) => {
  let text = '';
  for await (const chunk of request) text += chunk;
  const command = commands[request.url.slice(1)];
  if (!command) {
    response.writeHead(404).end();
    return;
  }
  response.writeHead(200, { 'content-type': 'application/json', connection: 'close' });
  response.end(JSON.stringify(command(text ? JSON.parse(text) : {})));
});

const listen = (server) => new Promise((ready) => server.listen(0, '127.0.0.1', () => ready(server.address().port)));
const issuer = `${scheme}://127.0.0.1:${await listen(server)}`;
answer = provider(issuer, keys);
console.log(JSON.stringify({ issuer, control: `127.0.0.1:${await listen(control)}` }));

process.stdin.resume();
process.stdin.on('end', () => process.exit(0));
process.stdin.on('error', () => process.exit(0));
