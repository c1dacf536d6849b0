// The buttons under the player in the WebUI: what the host and the panel can do with the clip, or with the frame.

// A section of a player (see Zs2Player) in the tab `tab`; `made(clips)` is told of clips that a button made.
function zs2Actions(tab, made) {
    return player => {
        player.actions = new Zs2Actions(player, tab, made);
        return player.actions.element;
    };
}

class Zs2Actions {
    constructor(player, tab, made) {
        Object.assign(this, {player, tab, made});
        this.busy = false;
        this._build();
        player.on('clip', () => this.update());
        player.on('about', () => this.update());
    }

    _build() {
        this.download = zs2Element('a', {class: 'zs2-button', download: true}, zs2Words('Download'));
        this.folder = zs2TextButton('Open folder', () => this._do(() => this._openFolder()));
        this.folder.hidden = !zs2Part(this.tab, 'player_open');
        this.stop = zs2TextButton('Stop', () => this._stop(), {hidden: true});
        const trays = [this._sendTray(), this._goOnTray(), this._settingsTray()];
        const titles = ['Send frame', 'Go on', 'Settings'];
        this.toggles = trays.map((tray, index) => this._toggle(titles[index], tray));
        const row = zs2Element(
            'div', {class: 'zs2-actions', role: 'group', 'aria-label': zs2Words('Clip')},
            this.download, this.folder, ...this.toggles, this.stop,
        );
        this.element = zs2Element('div', {class: 'zs2-extras'}, row, ...trays);
        this.update();
    }

    _toggle(title, tray) {
        const more = {'aria-expanded': 'false'};
        const toggle = zs2TextButton(title, () => {
            const opens = tray.hidden;
            for (const other of this.toggles) {
                other.tray.hidden = true;
                other.setAttribute('aria-expanded', 'false');
            }
            tray.hidden = !opens;
            toggle.setAttribute('aria-expanded', opens);
        }, more);
        toggle.append(zs2Icon('more'));
        toggle.tray = tray;
        return toggle;
    }

    _tray(label, ...children) {
        return zs2Element('div', {class: 'zs2-tray', role: 'group', 'aria-label': zs2Words(label), hidden: true}, ...children);
    }

    _button(label, action, more = {}) {
        return zs2TextButton(label, () => this._do(action), more);
    }

    _sendTray() {
        const send = place => () => this._send(place);
        this.control = this._button('ControlNet', send('control'));
        return this._tray(
            'Send frame', this._button('img2img', send('img2img')), this._button('Inpaint', send('inpaint')),
            this._button('Extras', send('extras')), this.control,
        );
    }

    _settingsTray() {
        this.copying = this._button('Copy settings', async() => {
            await zs2Copy(this.player.about.infotext);
            return 'The settings are copied.';
        });
        this.using = this._button('Use settings', () => zs2UseInfotext(this.tab, this.player.about.infotext));
        return this._tray('Settings', this.copying, this.using);
    }

    _goOnTray() {
        const number = (label, value, min, max = null) => zs2Element(
            'input', {type: 'number', value, min, max, step: 1, required: true, title: zs2Words(label), 'aria-label': zs2Words(label)});
        this.more = number('More frames', 8, 1);
        this.times = number('In-betweens ×', 2, 2, 4);
        const upscalers = zs2Upscalers(this.tab);
        this.upscaler = zs2Select('Upscaler', upscalers.map(name => [name, name]));
        if (upscalers.includes('Lanczos')) this.upscaler.value = 'Lanczos'; // which needs no model
        this.upscaler.title = zs2Words('Upscaler');
        this.scale = zs2Select('Scale', [2, 3, 4].map(factor => [factor, `×${factor}`]));
        this.scale.title = zs2Words('Scale');
        this.recipes = [
            this._button('Extend', () => this._step('extend', this.more)),
            this._button('Retake from here', () => this._retake()),
            this._button('In-betweens', () => this._step('in-betweens', this.times)),
        ];
        this.tasks = [...this.recipes, this._button('Upscale', () => this._make(tell => this._upscale(tell)))];
        const [extend, retake, between, upscale] = this.tasks;
        const source = this._button('Use as source', () => zs2UseAsSource(this.player.about.path));
        const pair = (...parts) => zs2Element('span', {class: 'zs2-pair'}, ...parts);
        return this._tray(
            'Go on', pair(extend, this.more), retake, pair(between, this.times),
            pair(upscale, this.upscaler, this.scale), source,
        );
    }

    // What can be done with the clip that is shown.
    update() {
        const {clip, about} = this.player;
        this.download.href = clip ? zs2ClipAddress(clip.files?.[0] || clip.name) : '';
        this.control.hidden = !zs2ControlPicture(this.tab);
        for (const button of this.element.querySelectorAll('button')) button.disabled = !about;
        for (const button of this.tasks) button.disabled = this.busy || !about;
        for (const button of this.recipes) button.disabled ||= !about?.settings;
        this.copying.disabled = this.using.disabled = !about?.infotext;
        this.stop.hidden = !this.busy;
        this.stop.disabled = false;
    }

    // --- what they do -----------------------------------------------------------------------------------------------

    // An action whose words, and whose errors, are shown.
    async _do(action) {
        try {
            const words = await action();
            if (words) this.player.say(zs2Words(words));
        } catch (error) {
            this.player.fail(error);
        }
    }

    async _send(place) {
        this.player.pause();
        const {clip, frame} = this.player;
        const answer = await zs2Ask(zs2ClipAddress(clip.name, 'frames', frame));
        const file = new File([await answer.blob()], `frame-${frame + 1}.png`, {type: 'image/png'});
        await zs2SendPicture(place, this.tab, file);
        this.player.say(zs2Words('Frame {0} was sent.', frame + 1));
    }

    async _openFolder() {
        const {clip} = this.player;
        await zs2AskPart(this.tab, 'open', {clip: clip.files?.[0] || clip.name});
    }

    // Copies the clip to where the host's Save button saves to.
    save() {
        const {clip} = this.player;
        return this._do(async() => {
            const names = clip.files?.length ? clip.files : [clip.name];
            const [, text] = await zs2AskPart(this.tab, 'save', {clips: names});
            this.player.say(text);
        });
    }

    _step(name, field) {
        if (!field.reportValidity()) return null;
        return this._make(tell => zs2GoOn(this.tab, name, this.player.clip.name, field.value, tell));
    }

    _retake() {
        this.player.pause();
        const {clip, frame} = this.player;
        if (frame === 0) throw new Error(zs2Words('The first frame is the still: another seed makes another one.'));
        return this._make(tell => zs2GoOn(this.tab, 'retake', clip.name, frame, tell));
    }

    _upscale(tell) {
        const request = {clip: this.player.clip.name, upscaler: this.upscaler.value, scale: Number(this.scale.value)};
        return zs2AskPart(this.tab, 'upscale', request, tell);
    }

    // A task that makes a clip, which is shown in the end.
    async _make(task) {
        this.busy = true;
        this.update();
        this.player.say(zs2Words('waiting for the WebUI'), 0);
        this.player.tell('works', true);
        try {
            const [clips, text] = await task((words, part) => this.player.say(words, part));
            this.made(clips);
            this.player.say(text);
        } finally {
            this.busy = false;
            this.player.tell('works', false);
            this.update();
            this.player.progress.hidden = true;
        }
    }

    _stop() {
        zs2Part(this.tab, 'going_on_stop').click();
        zs2Part(this.tab, 'postprocess_stop').click();
    }
}

// The names of the upscalers that the panel offers.
function zs2Upscalers(tab) {
    const id = `script_${tab}_zs2_postprocess_upscaler`;
    const control = window.gradio_config?.components.find(({props}) => props?.elem_id === id);
    const names = (control?.props.choices || []).map(choice => Array.isArray(choice) ? choice[1] : choice);
    return names.slice(1); // the first one is none
}
