// What the other files share: words in the page's language, elements, icons, questions to the server.

// `template` in the language of the page, with {0}, {1}, … replaced by `values`.
function zs2Words(template, ...values) {
    const translated = window.localization?.[template] || template;
    return translated.replace(/\{(\d)\}/g, (_, place) => values[place]);
}

// An element; attributes that begin with "on" are listeners, those that are null or false are left out.
function zs2Element(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
        if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
        else if (value !== null && value !== false) element.setAttribute(name, value === true ? '' : value);
    }
    element.append(...children);
    return element;
}

const zs2Icons = {
    play: 'M8 5v14l11-7z',
    pause: 'M7 5h4v14H7zM13 5h4v14h-4z',
    back: 'M6 5h2v14H6zM19 5v14L9 12z',
    forward: 'M16 5h2v14h-2zM5 5v14l10-7z',
    full: 'M4 4h6v2H6v4H4zM14 4h6v6h-2V6h-4zM4 14h2v4h4v2H4zM18 14h2v6h-6v-2h4z',
    compare: 'M11 3h2v18h-2zM4 6h5v2H6v8h3v2H4zM15 6h5v12h-5z',
    more: 'M6 9l6 6 6-6z',
};

function zs2Icon(name) {
    const icon = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
    const path = document.createElementNS('http://www.w3.org/2000/svg', 'path');
    path.setAttribute('d', zs2Icons[name]);
    for (const [key, value] of Object.entries({viewBox: '0 0 24 24', 'aria-hidden': 'true', class: 'zs2-icon'})) {
        icon.setAttribute(key, value);
    }
    icon.append(path);
    return icon;
}

function zs2IconButton(icon, label, onclick, more = {}) {
    const words = zs2Words(label);
    const attributes = {type: 'button', class: 'zs2-button zs2-only-icon', title: words, 'aria-label': words, onclick};
    return zs2Element('button', {...attributes, ...more}, zs2Icon(icon));
}

function zs2TextButton(label, onclick, more = {}) {
    return zs2Element('button', {type: 'button', class: 'zs2-button', onclick, ...more}, zs2Words(label));
}

// A row of choices: `options` are [value, label].
function zs2Select(label, options, onchange) {
    const choices = options.map(([value, text]) => zs2Element('option', {value}, zs2Words(text)));
    return zs2Element('select', {class: 'zs2-select', 'aria-label': zs2Words(label), onchange}, ...choices);
}

// The address of a clip's file, or of what belongs to it, relative to the page.
function zs2ClipAddress(name, ...behind) {
    return ['zs2/v1/clips', ...name.split('/').map(encodeURIComponent), ...behind].join('/');
}

// The answer of a route of ZS². Throws an Error with `status`, in words for the user.
async function zs2Ask(route, options = {}) {
    const address = route.startsWith('zs2/') ? route : `zs2/v1/${route}`;
    let answer;
    try {
        answer = await fetch(address, options);
    } catch {
        throw new Error(zs2Words('The WebUI does not answer.'));
    }
    if (answer.ok) return answer;
    const words = await answer.json().catch(() => ({}));
    const known = {401: 'The WebUI asks for a login: load the page again.', 404: 'The clip is no longer there.'};
    const text = known[answer.status] ? zs2Words(known[answer.status]) : words.detail;
    throw Object.assign(new Error(text || answer.statusText || `status ${answer.status}`), {status: answer.status});
}

// Sets the text of an element as often as is wanted: no node comes or goes, for which the WebUI's page looks out, and
// waits until none does any more.
function zs2SetText(element, text) {
    if (!element.firstChild) element.append('');
    if (element.firstChild.data !== text) element.firstChild.data = text;
}

function zs2Pause(milliseconds) {
    return new Promise(resolve => setTimeout(resolve, milliseconds));
}

function zs2Clamp(value, least, most) {
    return Math.min(Math.max(value, least), most);
}

async function zs2Copy(text) {
    try {
        await navigator.clipboard.writeText(text);
    } catch { // a page that is not from this machine, and not encrypted, has no clipboard
        const area = zs2Element('textarea', {style: 'position: fixed; opacity: 0'});
        area.value = text;
        document.body.append(area);
        area.select();
        const copied = document.execCommand('copy');
        area.remove();
        if (!copied) throw new Error(zs2Words('The browser does not allow copying.'));
    }
}
