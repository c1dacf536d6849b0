// The panel's own controls, and the host's, as the player uses them: everything goes the road that a click would go.

const zs2SettleTime = 500; // milliseconds until gradio knows what was put into a field

function zs2Part(tab, name) {
    return gradioApp().getElementById(`script_${tab}_zs2_${name}`);
}

function zs2SetField(field, value) {
    field.value = value;
    field.dispatchEvent(new Event('input', {bubbles: true}));
    field.dispatchEvent(new Event('change', {bubbles: true}));
}

// Puts a value into the field of a control of gradio, and takes an upload away that would come before it.
function zs2SetControl(control, value, upload = null) {
    upload?.querySelector('button[aria-label="Clear"], button[aria-label="Remove this file"]')?.click();
    const field = control.querySelector('textarea, input');
    const before = field.value;
    zs2SetField(field, value);
    return before;
}

function zs2IsOn(tab) {
    return Boolean(zs2Part(tab, 'enabled')?.querySelector('.input-accordion-checkbox')?.checked);
}

function zs2OpenPart(part) {
    const head = part?.querySelector('.label-wrap');
    if (head && !head.classList.contains('open')) head.click();
}

function zs2TurnOn(tab) {
    if (!zs2IsOn(tab)) zs2Part(tab, 'enabled')?.querySelector('.label-wrap').click();
}

// Waits until `found()` gives something. Throws an Error with `words` if it does not.
async function zs2Until(found, words, seconds = 5) {
    for (let waited = 0; waited < seconds * 20; waited++) {
        const result = found();
        if (result) return result;
        await zs2Pause(50);
    }
    throw new Error(zs2Words(words));
}

// Gives a picture to an image control of the host, in the place of the one that it has.
async function zs2GivePicture(control, file) {
    const input = () => control.querySelector('input[type="file"]');
    if (!control.querySelector('.forge-file-upload')) {
        const names = ['Remove Image', 'Clear'].map(name => control.querySelector(`button[aria-label="${name}"]`));
        names.find(Boolean)?.click();
    }
    const field = await zs2Until(input, 'The picture could not be put there: its place takes no file.');
    const files = new DataTransfer();
    files.items.add(file);
    field.files = files.files;
    field.dispatchEvent(new Event('change', {bubbles: true}));
}

// The image control of ControlNet's first unit in a tab, if there is one.
function zs2ControlPicture(tab) {
    const ids = ['ControlNet-0', 'ControlNet'].map(unit => `${tab}_controlnet_${unit}_input_image`);
    return ids.map(id => gradioApp().getElementById(id)).find(Boolean);
}

const zs2Places = {
    img2img: () => [switch_to_img2img, gradioApp().getElementById('img2img_image')],
    inpaint: () => [switch_to_inpaint, gradioApp().getElementById('img2maskimg')],
    extras: () => [switch_to_extras, gradioApp().getElementById('extras_image')],
};

// Sends a picture to a place of the host, and shows that place.
async function zs2SendPicture(place, tab, file) {
    const [show, control] = place === 'control' ? [() => {}, zs2ControlPicture(tab)] : zs2Places[place]();
    if (!control) throw new Error(zs2Words('This WebUI has no place for the picture.'));
    show();
    if (place === 'control') {
        for (let part = control.parentElement; part; part = part.parentElement) {
            const head = [...part.children].find(child => child.classList.contains('label-wrap'));
            if (head && !head.classList.contains('open') && !part.classList.contains('input-accordion')) head.click();
        }
    }
    await zs2Pause(100);
    await zs2GivePicture(control, file);
    control.scrollIntoView({block: 'nearest'});
}

// Fills a tab with the settings of an infotext, by the host's own button.
async function zs2UseInfotext(tab, text) {
    zs2SetField(gradioApp().querySelector(`#${tab}_prompt textarea`), text);
    await zs2Pause(zs2SettleTime);
    gradioApp().querySelector(`#tab_${tab} #paste`).click();
}

async function zs2UseAsSource(path) {
    switch_to_img2img();
    zs2TurnOn('img2img');
    zs2SetControl(zs2Part('img2img', 'source'), path, zs2Part('img2img', 'source_file'));
    const part = zs2Part('img2img', 'source_part');
    zs2OpenPart(part);
    await zs2Pause(100);
    part.scrollIntoView({block: 'nearest'});
}

// What a task has written into its result: gradio's own words about its queue are beside it.
function zs2Written(result) {
    return result.querySelector('.prose') || result;
}

const zs2Patience = 20; // seconds until a task says anything, be it that it waits

// Follows what a task writes into `result` until it has ended: `tell(text, part)` is called on the way, and `isOfTask`
// knows its words from those of the task before. Gives the clips that were made, and the last text. Throws an Error with
// what went wrong.
async function zs2Follow(result, isOfTask, tell) {
    const begun = Date.now();
    for (;;) {
        await zs2Pause(200);
        const written = zs2Written(result);
        const progress = written.querySelector('progress');
        const text = [...written.querySelectorAll('p')].map(line => line.textContent).join(' ');
        if (!isOfTask(written)) {
            if (Date.now() - begun < zs2Patience * 1000) continue;
            const again = written.querySelector('.zs2-made, progress') ? '' : written.textContent.trim();
            throw new Error(again || zs2Words('The panel does not answer.')); // the same error as before, or none
        }
        if (progress) {
            tell(text, progress.value);
            continue;
        }
        const made = written.querySelector('.zs2-made');
        if (!made) throw new Error(written.textContent.trim());
        return [JSON.parse(made.dataset.clips), text];
    }
}

// Goes on from a clip by a button of the panel: "extend", "retake" or "in-betweens".
async function zs2GoOn(tab, step, name, number, tell) {
    const part = what => zs2Part(tab, `going_on_${what}`);
    const clip = zs2SetControl(part('clip'), name, part('clip_file'));
    zs2SetControl(part(`${step}_number`), number);
    await zs2Pause(zs2SettleTime);
    const before = zs2Written(part('result')).innerHTML;
    part(step).click();
    try {
        return await zs2Follow(part('result'), ({innerHTML}) => innerHTML !== before, tell);
    } finally {
        zs2SetControl(part('clip'), clip);
    }
}

// Asks the panel's hidden part for what a browser cannot do: "save", "open" or "upscale".
async function zs2AskPart(tab, what, request, tell = () => {}) {
    const time = Date.now();
    zs2SetControl(zs2Part(tab, 'player_request'), JSON.stringify({...request, time}));
    await zs2Pause(zs2SettleTime);
    zs2Part(tab, `player_${what}`).click();
    const isOfTask = written => written.querySelector(`[data-time="${time}"]`);
    return zs2Follow(zs2Part(tab, 'player_result'), isOfTask, tell);
}
