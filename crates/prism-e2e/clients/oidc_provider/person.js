// A person in front of a browser: opens the address that a device shows, follows the provider's own pages, fills in and
// submits their forms, keeps the cookies.
//
//   node person.js ADDRESS NAME [deny | cancel]
//
// `deny` refuses the device on its first page; `cancel` leaves at the page that asks for a name. Prints the text of the
// last page. NODE_EXTRA_CA_CERTS names the CA of a provider that speaks https.

const [address, name, choice = 'agree'] = process.argv.slice(2);
const MOST_PAGES = 20;
const cookies = new Map();

function keep(response) {
  for (const line of response.headers.getSetCookie()) {
    const [pair] = line.split(';');
    const at = pair.indexOf('=');
    const [key, value] = [pair.slice(0, at), pair.slice(at + 1)];
    if (value === '') cookies.delete(key);
    else cookies.set(key, value);
  }
}

async function visit(url, form) {
  for (let hop = 0; hop < MOST_PAGES; hop += 1) {
    const headers = { cookie: [...cookies].map(([key, value]) => `${key}=${value}`).join('; ') };
    const request = form
      ? { method: 'POST', body: new URLSearchParams(form), headers, redirect: 'manual' }
      : { headers, redirect: 'manual' };
    const response = await fetch(url, request);
    keep(response);
    const next = response.headers.get('location');
    if (!next) return { url, status: response.status, text: await response.text() };
    url = new URL(next, url).href;
    form = undefined;
  }
  throw new Error(`more than ${MOST_PAGES} redirections, the last to ${url}`);
}

const unescape = (text) =>
  text.replaceAll('&quot;', '"').replaceAll('&#39;', "'").replaceAll('&lt;', '<').replaceAll('&gt;', '>').replaceAll('&amp;', '&');

function formOf(page) {
  const form = /<form[^>]*action="([^"]*)"[^>]*>([\s\S]*?)<\/form>/.exec(page.text);
  if (!form) return undefined;
  const fields = {};
  for (const [input] of form[2].matchAll(/<input[^>]*>/g)) {
    const of = (attribute) => new RegExp(`\\s${attribute}="([^"]*)"`).exec(input)?.[1];
    if (of('name')) fields[of('name')] = unescape(of('value') ?? '');
  }
  return { action: new URL(unescape(form[1]), page.url).href, fields };
}

function linkOf(page, words) {
  const link = [...page.text.matchAll(/<a href="([^"]*)">([^<]*)<\/a>/g)].find((found) => found[2].includes(words));
  return new URL(unescape(link[1]), page.url).href;
}

let page = await visit(address);
for (let pages = 0; pages < MOST_PAGES; pages += 1) {
  const form = formOf(page);
  if (!form) break;
  const { action, fields } = form;
  if ('confirm' in fields && choice === 'deny') {
    delete fields.confirm;
    fields.abort = 'yes';
  } else if ('login' in fields) {
    if (choice === 'cancel') {
      page = await visit(linkOf(page, 'Cancel'));
      continue;
    }
    fields.login = name;
    fields.password = `the password of ${name}`;
  } else if ('user_code' in fields && fields.user_code === '') {
    break;
  }
  page = await visit(action, fields);
}
console.log(page.text.replace(/<(style|script)[\s\S]*?<\/\1>/g, ' ').replace(/<[^>]*>/g, ' ').replace(/\s+/g, ' ').trim());
process.exit(page.status < 400 ? 0 : 1);
