// Whom the provider knows.

const people = {
  alice: { groups: ['platform', 'staff'], department: 'engineering' },
  bob: { groups: ['payments', 'staff'], department: 'finance' },
  carol: {},
};

const machines = {
  machine: { groups: ['robots'], department: 'ops' },
};

// An account, as oidc-provider asks for it. Anyone else may type what they like: they do not get in.
export function findAccount(context, id) {
  if (!Object.hasOwn(people, id)) return undefined;
  return { accountId: id, claims: () => ({ sub: id, ...people[id] }) };
}

// What access tokens say beside what the standard asks for.
export function claimsOf(token) {
  return people[token.accountId] ?? machines[token.clientId];
}

const deviceGrant = 'urn:ietf:params:oauth:grant-type:device_code';

export const clients = [
  {
    client_id: 'prism-admin',
    application_type: 'native',
    token_endpoint_auth_method: 'none',
    grant_types: [deviceGrant, 'refresh_token'],
    response_types: [],
    redirect_uris: [],
  },
  {
    client_id: 'machine',
    client_secret: 'machine-secret-0123456789abcdefghijklmnopqrstuvwxyz',
    token_endpoint_auth_method: 'client_secret_basic',
    grant_types: ['client_credentials'],
    response_types: [],
    redirect_uris: [],
  },
];
